"""What is done to a picture, and what stands for it in a prompt, as data; read from saved processors."""
