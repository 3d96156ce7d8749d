"""What is done with a trained model: load it from Python, search, export, the report page."""
