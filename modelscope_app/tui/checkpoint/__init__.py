"""One opened checkpoint or series on the screen: tensor tree, tensor detail, overview."""
