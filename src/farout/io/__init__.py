"""Files in and out: tables of any common format, and outputs that are written whole or not at all."""
