CREATE SCHEMA tallyline
