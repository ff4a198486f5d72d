"""Conversations with models, kept on disk: threads of messages, and which experts wrote each answer.

    kept = Conversations()                                    # beside the runs, see database.conversations_path
    thread = kept.new_thread(Settings("demo"))
    Answers(kept, pool.scheduler).ask(thread, kept.say(thread, "What may the tenant do?", None), Settings("demo"))

Neither the dashboard nor a server is needed for it. Reading what is kept needs no torch, writing an answer does.
"""
