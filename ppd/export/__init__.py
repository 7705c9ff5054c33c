"""Export: trace → fold → check → bundle."""
