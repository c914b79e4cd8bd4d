"""Pictures of the chapters on higher order, edges and recipes."""
