"""The network is a forward pass of our own over the weights of a CogVideoX transformer that diffusers keeps."""
