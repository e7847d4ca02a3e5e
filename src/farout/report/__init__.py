"""Any result in, one self-contained HTML page out."""
