"""The search for the fastest plan that keeps the answers: changes tried one by one, then together."""
