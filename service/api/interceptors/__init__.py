"""What happens around every call, one job each, in the order in which the server lists them."""
