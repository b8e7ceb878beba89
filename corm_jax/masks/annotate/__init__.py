"""A local web page that asks people where the features of classes lie."""
