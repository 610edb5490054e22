"""The passes that every exported graph is offered, in the order in which they run.

A new one is a file beside this one, or an object of the user's own, and one place in the list.
"""

from export.writer.passes import branch_on_images, join, names, scalars
from export.writer.passes.graph_pass import GraphPass

PASSES: tuple[GraphPass, ...] = (names, scalars, branch_on_images, join)
