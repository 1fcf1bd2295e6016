-- Every writing transaction begins with this. The lock makes acquiring the node wait for the transaction, and
-- reads the newest version of the row, which a subselect need not do under READ COMMITTED.
SELECT id, epoch, token FROM tallyline.node WHERE node = $1 FOR SHARE
