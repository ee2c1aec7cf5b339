"""The recipe of the bundled model `mini`: `python -m training.mini STAGE --data FOLDER --work FOLDER`."""
