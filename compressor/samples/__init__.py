"""Questions and pictures of a user: read, checked, and laid out as rows of a prompt."""
