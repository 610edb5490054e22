"""From pictures and a question to text, with numpy and one backend."""
