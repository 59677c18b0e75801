"""Networks trained to the end: on hard labels, on a teacher's, against a bias; one by one or stacked."""
