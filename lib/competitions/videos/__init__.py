"""Videos, real or fake."""
