"""crm_spark: who the customers are, what they are worth, and what they will do next."""

__version__ = "0.1.0"
