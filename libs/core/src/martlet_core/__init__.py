"""What Martlet's services share. Imports no ML library and no web framework."""
