"""What it loses to store the decoder's matrices in whole numbers; a figure beside fidelity and loss."""

from typing import Annotated, Literal

from pydantic import Field

from compressor.facts import Facts, Positive

Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class QuantizationLoss(Facts):
    """The compressed torch model with float weights beside the one whose matrices are whole numbers.

    Neither is rounded otherwise: both compute in float32, on the same plan.

    Attributes:
        source: what the models were asked, in words.
        rows: next-token distributions that were compared.
        kl: mean KL(float || whole numbers) of these, in nats.
        kl_worst: the largest.
        agreement: share of equal most likely next tokens.
        largest: largest difference of a logit.
    """

    source: str
    rows: Positive
    kl: Size
    kl_worst: Size
    agreement: Annotated[float, Field(ge=0, le=1)]
    largest: Size


class QuantizationReport(Facts):
    """How the decoder's matrices are stored in whole numbers.

    Attributes:
        weights: as which.
        block: how many weights of a column have a scale together.
        float_bytes: of the matrices in the dtype of the graphs.
        stored_bytes: of their whole numbers and scales.
        loss: what that alone loses; None: it was not measured.
    """

    weights: Literal["int8", "int4"]
    block: Positive
    float_bytes: Positive
    stored_bytes: Positive
    loss: QuantizationLoss | None = None
