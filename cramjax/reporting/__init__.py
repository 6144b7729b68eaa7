"""Pages that show what runs left: curves, tables and pictures in one file of HTML."""
