"""Stock clients: folders that programs load which know nothing of visual rows; see docs/clients.md."""
