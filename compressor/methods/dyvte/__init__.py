"""DyVTE: gates decide from text states after which layer visual tokens leave."""
