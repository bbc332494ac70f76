"""Virtual clients: the head's side of an exchange, as a Flower ClientApp."""
