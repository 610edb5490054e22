"""An artifact packed for stock clients."""
