"""`orbital chat`: groups in a full-screen window.

running     a store, a client, a window            app         the window: what is where, and what is drawn when
acts        what each key does                     rooms       what the client says about each group, kept up to date
threads     the thread that is open                reading     how far one has read, in the store
unread      what has not been read, counted        nearby      who is here, who types
rendering   how things look, always as plain text  colours     whose name has which colour
panes       the parts of the window                dialogs     what is asked
people      members, and who knocks               view        from the client's state to the parts of the window
"""

from orbital_client.chat.running import run

__all__ = ["run"]
