"""GLUE and SuperGLUE: their tasks and data, official metrics, published rows, model inputs."""
