SELECT take_updates()
