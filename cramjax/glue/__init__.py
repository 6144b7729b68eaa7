"""GLUE and SuperGLUE: what the tasks are, their data, official metrics, published rows and the form their servers take."""
