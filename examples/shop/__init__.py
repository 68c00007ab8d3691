"""A shop: orders become invoices, parcels and figures."""
