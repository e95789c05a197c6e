"""Programs that load a written model, run on a folder and compared with what the model must answer."""
