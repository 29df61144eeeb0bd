"""One stage of the method a file: plain data in, plain data out, on a run directory."""
