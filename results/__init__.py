"""Code for records, columns and tables; the records themselves lie in OUT/records."""
