"""What each request does: one class a subject, one method a request."""
