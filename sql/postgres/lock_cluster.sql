-- New nodes register one after the other: the number of a node is the highest one + 1.
SELECT one FROM tallyline.cluster FOR UPDATE
