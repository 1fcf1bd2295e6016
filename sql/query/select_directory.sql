SELECT uuid FROM directory
