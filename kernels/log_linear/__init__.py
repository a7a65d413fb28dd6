"""Log-linear models of rows that are described by ids, such as the labels of other tasks."""
