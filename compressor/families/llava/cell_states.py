"""A pass of a tower over several tiles whose patches are the cells of one grid.

Letters: I tiles, N patches of each, M cells, C width, H heads, d head size; F width of the projector's input.
"""

from collections.abc import Mapping

from torch import Tensor

from compressor.contract.choice import TowerPass


class CellStates:
    """See `compressor.contract.choice.TowerPass`: of one tile, whose patches are the grid's cells.

    Each was read with its own tile, so it has that one's class token.

    Args:
        tiles: the pass over them.
        cells: [M] which of their I * N patches the cells are.
        patches: N.
    """

    def __init__(self, tiles: TowerPass, cells: Tensor, patches: int) -> None:
        self._tiles, self._cells, self._patches = tiles, cells, patches

    def states(self, place: int) -> Tensor:
        """Return the cells [1, M, C] of a hidden state."""
        return self._of(self._tiles.states(place))

    def patches(self) -> Tensor:
        """Return what the projector takes of the cells, [1, M, F]."""
        return self._of(self._tiles.patches())

    def class_row(self) -> Tensor:
        """Return what it would take of each cell's class token, [1, M, F]."""
        return self._tiles.class_row()[:, 0][self._cells // self._patches][None]

    def class_attention(self, layer: int) -> Tensor:
        """Return what its tile's class token reads of each cell in a layer, [1, H, M] float32."""
        return self._of(self._tiles.class_attention(layer).transpose(1, 2)).transpose(1, 2)

    def attention_received(self, layer: int) -> Tensor:
        """Return what its tile's patches read of each cell in a layer, [1, M] float32."""
        return self._of(self._tiles.attention_received(layer))

    def keys(self, layer: int) -> Tensor:
        """Return the keys of the cells in a layer, [1, H, M, d]."""
        return self._of(self._tiles.keys(layer).transpose(1, 2)).transpose(1, 2)

    def project(self, rows: Tensor) -> Tensor:
        """Return what the projector makes of rows [1, K, F], [1, K, D]."""
        return self._tiles.project(rows)

    def layer_of(self, weights: Mapping[str, Tensor], rows: Tensor) -> Tensor:
        """See `TowerPass.layer_of`."""
        return self._tiles.layer_of(weights, rows)

    def _of(self, values: Tensor) -> Tensor:
        """Return the cells [1, M, ...] of values of patches [I, N, ...]."""
        return values.flatten(0, 1)[self._cells][None]
