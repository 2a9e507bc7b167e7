"""What users get, by real packets: every test for three back-ends and three modes."""
