"""How parts that methods learn are trained; what they are, `Method.learned_shapes` says."""

from compressor.schema.values import Count, Rate, RecipeSection, Seed


class PartTraining(RecipeSection):
    """How `train-parts` trains.

    Attributes:
        steps: updates, 1 or more.
        batch: prompts a step, 1 or more.
        learning_rate: of AdamW, above 0, as a share of each tensor's size at the start; None: the method's
            own, `Method.learned_rate`.
        seed: of what is drawn, 0 to 2**32 - 1.
    """

    steps: Count = 400
    batch: Count = 4
    learning_rate: Rate | None = None
    seed: Seed = 0
