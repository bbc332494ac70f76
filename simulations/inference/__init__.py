"""Split inference: each image leaves at an exit of the device, or is sent to the server."""
