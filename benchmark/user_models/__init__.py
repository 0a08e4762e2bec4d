"""Models and attacks of the user's: networks and their weights, ONNX files, attacks of other libraries."""
