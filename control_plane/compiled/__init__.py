"""Machine code that compiling nodes made, kept for the nodes that believe them."""
