"""Arrays of calls, and what is the same for every backend about them."""

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
