-- The program computes the sums, because revenue_micros may exceed 64 bits.
UPDATE overall SET users = ?1, events = ?2, revenue_micros = ?3, updated_at_ms = ?4, ids = ids + ?5
