"""One file a page; pages never import each other."""
