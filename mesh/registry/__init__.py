"""The registry: etcd records, the client, leases, leader election, the embedded store, and the watch-fed view."""
