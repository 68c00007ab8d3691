"""What pollers do in the database: their leases and cursors, the pages that they read, the rows that they mark."""
