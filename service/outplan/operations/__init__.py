"""For the people who run the service: rejected commands in their hands, and a check of it all."""
