"""The Data Backbone: Butler, L1 database, alert archive, journal, and the Kafka edges."""
