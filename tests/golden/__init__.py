"""Golden cases: the methods' released code in numbers; `python -m tests.golden FOLDER`."""
