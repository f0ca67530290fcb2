"""What runs the tasks: their interface, the plan of the table, rows, existing records, jobs."""
